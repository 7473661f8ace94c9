"""One folder an architecture; each is found through its entry point, and nothing imports them."""
