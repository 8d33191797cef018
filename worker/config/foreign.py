"""Parameters that Postfix has and our table has not: what a main.cf made for Postfix may hold.

They are no mistakes. Those of other programs are mentioned together, in one line; those of the SMTP
client get a line each, because a site that sets one counts on it.
"""

# Names of other programs: by how they begin, and the rest one by one.
_OTHER_BEGINNINGS = (
    "address_verify_",
    "allow_",
    "command_",
    "enable_",
    "header_",
    "local_",
    "mailbox_",
    "milter_",
    "multi_",
    "postscreen_",
    "proxy",
    "qmgr_",
    "qmqpd_",
    "relay_",
    "sender_",
    "smtpd_",
    "strict_",
    "tls_random_",
    "tlsproxy_",
    "unknown_",
    "unverified_",
    "virtual_",
)

_OTHER_NAMES = """
access_map_defer_code access_map_reject_code alias_database alias_maps
alternate_config_directories always_add_missing_headers always_bcc anvil_rate_time_unit
anvil_status_update_time append_at_myorigin append_dot_mydomain application_event_drain_time
authorized_flush_users authorized_mailq_users authorized_submit_users
backwards_bounce_logfile_compatibility berkeley_db_create_buffer_size
berkeley_db_read_buffer_size biff body_checks body_checks_size_limit bounce_service_name
bounce_template_file broken_sasl_auth_clients canonical_classes canonical_maps
cleanup_replace_stray_cr_lf cleanup_service_name content_filter cyrus_sasl_config_path
daemon_directory daemon_table_open_error_is_fatal debugger_command
default_delivery_slot_cost default_delivery_slot_discount default_delivery_slot_loan
default_extra_recipient_limit default_filter_nexthop default_minimum_delivery_slots
default_privs default_rbl_reply default_recipient_limit default_recipient_refill_delay
default_recipient_refill_limit default_verp_delimiters defer_code defer_service_name
deliver_lock_attempts deliver_lock_delay detect_8bit_encoding_header
disable_mime_input_processing disable_verp_bounces disable_vrfy_command
dns_ncache_ttl_fix_enable dnsblog_reply_delay dnsblog_service_name dnssec_probe dont_remove
duplicate_filter_limit empty_address_default_transport_maps_lookup_key
empty_address_local_login_sender_maps_lookup_key empty_address_relayhost_maps_lookup_key
error_service_name execution_directory_expansion_filter expand_owner_alias export_environment
fallback_transport fallback_transport_maps fast_flush_domains fast_flush_purge_time
fast_flush_refresh_time fault_injection_code flush_service_name fork_attempts fork_delay
forward_expansion_filter forward_path frozen_delivered_to hash_queue_depth hash_queue_names
helpful_warnings home_mailbox html_directory import_environment in_flow_delay
info_log_address_format invalid_hostname_reject_code ipc_idle ipc_ttl line_length_limit
lmdb_map_size luser_relay mail_owner mail_release_date mail_spool_directory
maillog_file_compressor maillog_file_prefixes maillog_file_rotate_suffix mailq_path
manpage_directory maps_rbl_domains maps_rbl_reject_code masquerade_classes masquerade_domains
masquerade_exceptions master_service_disable message_drop_headers message_reject_characters
message_strip_characters meta_directory mime_header_checks mynetworks
mynetworks_style nested_header_checks newaliases_path non_fqdn_reject_code non_smtpd_milters
openssl_path owner_request_special permit_mx_backup_networks pickup_service_name
pipe_delivery_status_filter plaintext_reject_code postlog_service_name postlogd_watchdog_timeout
postmulti_control_commands postmulti_start_commands postmulti_stop_commands
prepend_delivered_header process_id_directory queue_file_attribute_count_limit
queue_service_name rbl_reply_maps readme_directory receive_override_options recipient_bcc_maps
recipient_canonical_classes recipient_canonical_maps reject_code reject_tempfail_action
relocated_maps remote_header_rewrite_domain require_home_directory reset_owner_alias
resolve_dequoted_address resolve_null_domain resolve_numeric_domain respectful_logging
rewrite_service_name sample_directory sendmail_fix_line_endings sendmail_path
service_throttle_time setgid_group shlib_directory show_user_unknown_table_name
showq_service_name smtputf8_autodetect_classes stale_lock_time stress sun_mailtool_compatibility
swap_bangpath tcp_windowsize tls_preempt_cipherlist
tls_server_sni_maps tls_session_ticket_cipher tlsmgr_service_name trace_service_name trigger_timeout
undisclosed_recipients_header verp_delimiter_filter
"""

# Names of the SMTP and LMTP client, and of routing for them, that are still to come. All by name:
# a slip in a name of ours, of TLS above all, must not be taken for one of them.
_CLIENT_NAMES = """
sender_dependent_default_transport_maps
sender_dependent_relayhost_maps service_name tls_config_file tls_config_name tls_dane_digests
tls_dane_digest_agility tls_dane_trust_anchor_digest_enable tls_disable_workarounds
tls_eecdh_auto_curves tls_eecdh_strong_curve tls_eecdh_ultra_curve tls_fast_shutdown_enable
tls_ffdhe_auto_groups tls_legacy_public_key_fingerprints tls_required_enable tls_ssl_options
"""

_CLIENT_ENDINGS = """
dns_reply_filter dns_resolver_options reply_filter
tls_dane_insecure_mx_policy tls_force_insecure_host_tlsa_lookup
tlsrpt_enable tlsrpt_skip_reused_handshakes tlsrpt_socket_name
"""

_OTHER = frozenset(_OTHER_NAMES.split())
_CLIENT = frozenset(
    (
        *_CLIENT_NAMES.split(),
        *(f"{protocol}_{end}" for protocol in ("smtp", "lmtp") for end in _CLIENT_ENDINGS.split()),
    )
)


def of_other_programs(name: str) -> bool:
    """Whether the name belongs to a part of Postfix whose work is not ours."""
    return name in _OTHER or (name.startswith(_OTHER_BEGINNINGS) and name not in _CLIENT)


def of_the_server(name: str) -> bool:
    """Whether the name is one of Postfix's SMTP server; most have a twin of the client."""
    return name.startswith("smtpd_")


def of_the_client(name: str) -> bool:
    """Whether the name belongs to Postfix's SMTP client, whose work is ours."""
    return name in _CLIENT
