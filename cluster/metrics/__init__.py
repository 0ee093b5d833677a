"""From the agent's windows to the files of a run: schemas, the agent's stream, the store, the aggregator. No Ray here."""
