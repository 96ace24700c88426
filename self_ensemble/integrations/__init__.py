"""Our methods behind the doors of other toolkits, a module each; each needs that toolkit."""
