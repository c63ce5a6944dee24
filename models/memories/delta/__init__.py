"""The delta family: Gated DeltaNet, KDA, Gated DeltaNet-2."""
