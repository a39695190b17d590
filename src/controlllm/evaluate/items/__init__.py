"""Every question put to every model, kept item by item.

records     What was asked, of whom, and what came back: an evaluation as it lies in a folder
comparison  Two models on the same items: readings, intervals, and one word for each benchmark
"""
