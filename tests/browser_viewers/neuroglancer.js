// The whole of neuroglancer; the state after "#!" in the address says what it shows.
import "neuroglancer";
import { setupDefaultViewer } from "neuroglancer/unstable/ui/default_viewer_setup.js";

setupDefaultViewer(); // sets window.viewer
