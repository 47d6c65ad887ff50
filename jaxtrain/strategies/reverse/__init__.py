"""D-RTRL by reverse mode through detached time steps."""
