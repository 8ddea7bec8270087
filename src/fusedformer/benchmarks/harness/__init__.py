"""How it is measured: one op or model by several contenders, right first, then side by side."""
