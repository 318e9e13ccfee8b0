"""Worlds: what the policy's tools act on, one for each completion, and how a completion acts in it."""
