"""The vision encoder, the causal language model, what joins them, and the ComposerModel around both."""
