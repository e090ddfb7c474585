"""What people run from a checkout: `setup` (before everything else), `demo`. The product imports nothing from here."""
