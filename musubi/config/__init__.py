"""What a person writes, as flags or TOML, becomes one frozen, checked value."""
