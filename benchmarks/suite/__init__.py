"""The benchmark of whole proxies, side by side: what each costs, and what each delivers, as clusters grow."""
