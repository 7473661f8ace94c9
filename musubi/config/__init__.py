"""Options from flags or TOML, checked and put into one frozen value."""
