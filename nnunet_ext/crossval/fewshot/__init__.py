"""The protocol of few-shot segmentation papers: folds over patients, supports, baselines and the table of results."""
