// Bundles the viewers into the folder that is given: node build.js FOLDER
//
// Neuroglancer takes its icons, ikonate, from GitHub: package.json takes them from the registry, and
// puts an empty package in the place of those that no bundle needs.
import { copyFileSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import * as esbuild from "esbuild";

const folder = process.argv[2];
const resolve = createRequire(import.meta.url).resolve;

// Neuroglancer asks for a later state of these icons than the registry has.
const renamed = { "code-alt": "edit", "controls-alt": "controls", layers: "stack" };
const icons = {
  name: "icons",
  setup(build) {
    build.onResolve({ filter: /^ikonate\/.*\?raw$/ }, ({ path }) => {
      const name = path.match(/([^/]+)\.svg\?raw$/)[1];
      return { path: resolve(`ikonate/icons/${renamed[name] ?? name}.svg`), namespace: "icon" };
    });
    build.onLoad({ filter: /.*/, namespace: "icon" }, ({ path }) => ({
      contents: readFileSync(path, "utf8"),
      loader: "text",
    }));
  },
};

const neuroglancer = "node_modules/neuroglancer/lib";
await esbuild.build({
  // The workers are fetched by these names from beside the page, which is at the server's root.
  entryPoints: {
    neuroglancer: "neuroglancer.js",
    "chunk_worker.bundle": `${neuroglancer}/chunk_worker.bundle.js`,
    "async_computation.bundle": `${neuroglancer}/async_computation.bundle.js`,
  },
  conditions: [
    "neuroglancer/datasource:none_by_default",
    "neuroglancer/datasource/zarr:enabled",
    "neuroglancer/kvstore:none_by_default",
    "neuroglancer/kvstore/http:enabled",
    "neuroglancer/layer:none_by_default",
    "neuroglancer/layer/image:enabled",
  ],
  bundle: true,
  format: "esm",
  outdir: folder,
  plugins: [icons],
  target: "chrome120",
  logLevel: "warning",
});
await esbuild.build({
  entryPoints: ["niivue.js"],
  bundle: true,
  format: "esm",
  outdir: folder,
  target: "chrome120",
  logLevel: "warning",
});
for (const page of ["neuroglancer.html", "niivue.html"]) copyFileSync(page, `${folder}/${page}`);
