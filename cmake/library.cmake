# The one library that users link: every room's objects together.
add_library(thermocline)
add_library(thermocline::thermocline ALIAS thermocline)
foreach(room ${THERMOCLINE_ROOMS})
  target_sources(thermocline PRIVATE $<TARGET_OBJECTS:${room}>)
endforeach()
target_include_directories(thermocline PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
target_link_libraries(thermocline PRIVATE
  $<BUILD_INTERFACE:DNNL::dnnl> $<BUILD_INTERFACE:TBB::tbb> $<BUILD_INTERFACE:PkgConfig::uring>
  $<BUILD_INTERFACE:PkgConfig::hwloc> $<BUILD_INTERFACE:PkgConfig::xxhash>
  $<BUILD_INTERFACE:PkgConfig::pcre2> $<BUILD_INTERFACE:Boost::program_options> Threads::Threads)
