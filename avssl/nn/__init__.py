"""Leaves that several systems need with the same numbers: attention, mel filter banks, position tables, EMA, masks."""
