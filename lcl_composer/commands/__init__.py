"""What the verbs of `lcl` print: rendering only, no logic of the library."""
