"""The losses inside other libraries; none of these modules is imported by the package itself."""
