"""Settings, hashing, content store, ledger, locks, errors: what every room stands on."""
