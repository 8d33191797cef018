"""As whom we log in: a user and a secret, from one entry of smtp_sasl_password_maps."""

import hashlib
from dataclasses import dataclass

from protocol.sasl.secret import Secret
from worker.config.table import TableError


@dataclass(frozen=True, slots=True)
class Credentials:
    """`secret` empty: a client certificate, a ticket or a token from elsewhere proves who we are.

    `authzid`: whom the server should take us for (send_cyrus_sasl_authzid); empty: for `user`.
    """

    user: str
    secret: Secret
    authzid: str = ""

    @property
    def identity(self) -> str:
        """For keys of sessions: equal for the same login name, and says nothing of the secret.

        32 hexadecimal digits.
        """
        login = f"{self.user}\0{self.authzid}".encode("utf-8", "surrogateescape")
        return hashlib.sha256(login).hexdigest()[:32]


def read_entry(value: str, delimiter: str, key: str) -> Credentials:
    """Credentials of the text `value` that the tables have for `key`: user, delimiter, password.

    Raises TableError, which does not show the text.
    """
    user, _, password = value.partition(delimiter)
    if not user:
        raise TableError(f"the entry for {key} in the password table begins without a user name")
    for char in user + password:
        if char in "\0\r\n" or "\ud800" <= char <= "\udfff":
            break
    else:
        return Credentials(user, Secret(password))
    raise TableError(
        f"the entry for {key} in the password table has characters that cannot be sent"
    )
