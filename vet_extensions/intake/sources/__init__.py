"""Where images come from: folders and archives of DICOM files, DICOMweb servers, public data sets with tables, tables of one's own."""
