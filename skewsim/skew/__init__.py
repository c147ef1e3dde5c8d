"""How large a skew is, what it is like, and whether that is normal: metrics, tables, profiles, advice, gates."""
