"""The queue manager of our own modes: store, scheduler, retry, bounces. Start in scheduler.py."""
