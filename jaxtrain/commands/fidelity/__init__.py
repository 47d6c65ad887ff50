"""``jaxtrain fidelity``: how far each strategy's gradient is from that of BPTT."""
