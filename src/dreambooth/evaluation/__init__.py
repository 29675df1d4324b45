"""The measure: how well a run did, in numbers with intervals."""
