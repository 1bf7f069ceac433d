"""Programs built on minidl: first lessons and the three systems of the talk."""
