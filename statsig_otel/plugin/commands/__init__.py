"""The commands of `statsig-otel`: each module has one, as its object `command`. They are loaded when they are used."""
