# The one library that users link: every room's objects together, its public headers, and the two
# ways to find it when installed: find_package(thermocline) and pkg-config.
include(CMakePackageConfigHelpers)
include(cmake/version.cmake)

add_library(thermocline)
add_library(thermocline::thermocline ALIAS thermocline)
foreach(room ${THERMOCLINE_ROOMS})
  target_sources(thermocline PRIVATE $<TARGET_OBJECTS:${room}>)
endforeach()
target_include_directories(thermocline PUBLIC
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
  $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/thermocline>)
target_compile_features(thermocline PUBLIC cxx_std_20)
target_link_libraries(thermocline PRIVATE DNNL::dnnl TBB::tbb PkgConfig::openblas
                      PkgConfig::uring PkgConfig::hwloc PkgConfig::xxhash PkgConfig::pcre2 Boost::program_options Threads::Threads)
set(THERMOCLINE_PC_CUDA "")
if(THERMOCLINE_CUDA_FOUND)
  target_link_libraries(thermocline PRIVATE CUDA::cudart_static)
  set(THERMOCLINE_PC_CUDA "-L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -ldl -lrt ")
endif()
set(THERMOCLINE_PC_FAISS "")
if(THERMOCLINE_FAISS_FOUND)
  target_link_libraries(thermocline PRIVATE faiss)
  set(THERMOCLINE_PC_FAISS "-lfaiss -llapack -lblas ")
endif()

# The library's face, the words that it is written in, and what a program that shows its text needs
# (utf8.h). They keep their folders: a header says
# #include "runtime/thermocline.h" here and where it is installed.
set(THERMOCLINE_PUBLIC_HEADERS
  runtime/thermocline.h runtime/kv_cache.h runtime/chat_message.h runtime/course.h runtime/layer_spec.h
  runtime/observer.h runtime/report.h runtime/sampler.h runtime/session.h runtime/stop_asked.h
  kernels/base/error.h kernels/base/half.h kernels/base/head_size.h kernels/base/ids.h
  kernels/base/rope_pairs.h kernels/base/tier_counters.h kernels/base/utf8.h kernels/base/view.h)
foreach(header ${THERMOCLINE_PUBLIC_HEADERS})
  get_filename_component(folder ${header} DIRECTORY)
  install(FILES ${header} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/thermocline/${folder})
endforeach()
install(DIRECTORY configs/methods DESTINATION ${CMAKE_INSTALL_DATADIR}/thermocline)
# With what the README points at: its paths hold there too.
install(FILES LICENSE README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs examples DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(package_directory ${CMAKE_INSTALL_LIBDIR}/cmake/thermocline)
install(TARGETS thermocline EXPORT thermocline-targets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT thermocline-targets NAMESPACE thermocline:: DESTINATION ${package_directory})
configure_package_config_file(cmake/thermocline-config.cmake.in
  ${PROJECT_BINARY_DIR}/thermocline-config.cmake INSTALL_DESTINATION ${package_directory}
  PATH_VARS CMAKE_INSTALL_DATADIR)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/thermocline-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/thermocline-config.cmake
              ${PROJECT_BINARY_DIR}/thermocline-config-version.cmake cmake/FindDNNL.cmake
        DESTINATION ${package_directory})

# The .pc file counts from where it lies, so that an installed tree may be moved.
file(RELATIVE_PATH THERMOCLINE_PC_UP /p/${CMAKE_INSTALL_LIBDIR}/pkgconfig /p)
configure_file(cmake/thermocline.pc.in ${PROJECT_BINARY_DIR}/thermocline.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/thermocline.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
