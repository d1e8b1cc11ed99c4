"""Whether students compute what slicing promises, checked on real ones before anything is trained."""
