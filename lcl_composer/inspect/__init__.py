"""`lcl inspect`: what a data set of Documents holds, as the model will see it."""
