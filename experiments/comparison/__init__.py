"""Several runs compared: seeds, intervals, paired differences."""
