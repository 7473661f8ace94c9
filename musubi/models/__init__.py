"""Model files: fetched from the hub, and found on this machine by what is in them."""
