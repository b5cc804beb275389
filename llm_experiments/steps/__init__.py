"""What a run consists of: adapters that are trained, and items put to a base model under a merge.

A step is described by its content alone (the texts an adapter is trained on, not the name of the experiment),
so experiments that need the same adapter share it, and a change of any part makes a new step.

    TrainAdapter | GivenAdapter -> RandomAdapter -> Sweep -> Ask -> rows
"""
