// NiiVue over the whole window; window.load shows slices of a level of an OME-Zarr image.
import { Niivue, SLICE_TYPE } from "@niivue/niivue";

const viewer = new Niivue({ sliceType: SLICE_TYPE.AXIAL });
window.viewer = viewer;
window.load = async (url, level) => {
  await viewer.attachTo("canvas");
  // The name says which format it is.
  await viewer.loadVolumes([{ url, name: "image.zarr", zarrLevel: level }]);
};
