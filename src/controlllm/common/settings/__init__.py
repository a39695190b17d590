"""Settings that are out of bounds, or said and not read.

bounds  Numbers of settings: finite, and within what can be meant
fields  Facts about settings that stand with their fields, for whoever parses, compares or shows
        them
said    Said, so used: a setting that is given and would not be read is refused, or warned of, by
        name
"""
