# What --version says, given to the one file that says it. Configured again when HEAD moves.
set(THERMOCLINE_COMMIT unknown)
find_package(Git QUIET)
if(GIT_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} describe --always --dirty --abbrev=7
                  WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} OUTPUT_VARIABLE described
                  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  execute_process(COMMAND ${GIT_EXECUTABLE} rev-parse --git-path logs/HEAD
                  WORKING_DIRECTORY ${PROJECT_SOURCE_DIR} OUTPUT_VARIABLE head_log
                  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(failed EQUAL 0)
    set(THERMOCLINE_COMMIT ${described})
    get_filename_component(head_log "${head_log}" ABSOLUTE BASE_DIR ${PROJECT_SOURCE_DIR})
    if(EXISTS "${head_log}")
      set_property(DIRECTORY ${PROJECT_SOURCE_DIR} APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
                   "${head_log}")
    endif()
  endif()
endif()
set_source_files_properties(runtime/version.cpp PROPERTIES COMPILE_DEFINITIONS
  "THERMOCLINE_VERSION=\"${PROJECT_VERSION}\";THERMOCLINE_COMMIT=\"${THERMOCLINE_COMMIT}\";THERMOCLINE_BUILD=\"${CMAKE_BUILD_TYPE}\";THERMOCLINE_CUDA_BUILT=$<IF:$<BOOL:${THERMOCLINE_CUDA_FOUND}>,true,false>")
