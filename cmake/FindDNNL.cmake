# oneDNN as the target DNNL::dnnl. Its own CMake package cannot be used: Debian's demands OpenCL,
# which only the users of its GPU side need.
include(FindPackageHandleStandardArgs)
find_path(DNNL_INCLUDE_DIR NAMES dnnl.hpp)
find_library(DNNL_LIBRARY NAMES dnnl)
mark_as_advanced(DNNL_INCLUDE_DIR DNNL_LIBRARY)
# Debian's build runs on OpenMP; each caller's thread sets its own count of threads to 1.
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package_handle_standard_args(DNNL REQUIRED_VARS DNNL_LIBRARY DNNL_INCLUDE_DIR)
if(DNNL_FOUND AND NOT TARGET DNNL::dnnl)
  add_library(DNNL::dnnl UNKNOWN IMPORTED)
  set_target_properties(DNNL::dnnl PROPERTIES IMPORTED_LOCATION "${DNNL_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${DNNL_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "${OpenMP_CXX_LIBRARIES}")
endif()
