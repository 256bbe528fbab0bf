"""Pictures of trials and sweeps, as the field draws them: one file per kind, each a function from loaded data to a matplotlib Figure.

matplotlib is imported when the first picture is drawn, without pyplot; nothing here imports mlflow or ray.
"""
