"""Results in the forms of other people's tools: supervision, FiftyOne, labelme, Label Studio."""
