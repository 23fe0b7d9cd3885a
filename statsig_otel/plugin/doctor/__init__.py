"""What `statsig-otel doctor` looks at: a module for each kind of thing. Nothing that it looks at is changed."""
