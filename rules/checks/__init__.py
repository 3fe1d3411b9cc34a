"""What can be known to be wrong, or unwise, from models.toml and a config.json: rules by kind, listed by `check`."""
