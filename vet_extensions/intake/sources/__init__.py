"""Where images come from: DICOM in folders, archives and on DICOMweb servers; public data sets; tables of one's own."""
