"""How large a skew is, how it is distributed, and whether that is normal: metrics, tables, profiles, advice, gates."""
