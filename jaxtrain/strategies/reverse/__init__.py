"""Online rules with a linear trace, computed backward in time."""
