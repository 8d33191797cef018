"""Deliver one request: endpoints x recipients -> outcomes. Start reading in deliver.py."""
