"""The interchangeable modes. Imported as kproxy.modes."""
