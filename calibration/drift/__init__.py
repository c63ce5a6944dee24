"""How far a candidate parts from its float model over a long closed loop."""
