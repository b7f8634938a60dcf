// Lets a folder be chosen, or dropped on the box of files, and gives that box one zip of its test
// clips: Gradio uploads a folder's files without the folders they lie in, which name the machines.
// What may be in a zip is checked where it is unpacked; the limits here only save a vain upload.
const { folders, max_clips: maxClips, max_bytes: maxBytes, box: boxId } = props;
const chooser = element.querySelector("input");
const say = (words) => { element.querySelector("[role=status]").textContent = words; };
const box = () => document.getElementById(boxId);

const CRC = Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n >>> 0;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) crc = CRC[(crc ^ bytes[i]) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

function header(signature, fields) {
  // Fields are [bytes, value], little-endian.
  const view = new DataView(new ArrayBuffer(4 + fields.reduce((sum, [size]) => sum + size, 0)));
  view.setUint32(0, signature, true);
  let at = 4;
  for (const [size, value] of fields) {
    if (size === 2) view.setUint16(at, value, true); else view.setUint32(at, value, true);
    at += size;
  }
  return view.buffer;
}

async function zipped(clips) {
  // Stored, not compressed: noise does not shrink. Names are UTF-8, dates are the zip's first day.
  const parts = [], directory = [];
  let offset = 0, directorySize = 0;
  for (const { path, file } of clips) {
    const bytes = new Uint8Array(await file.arrayBuffer());
    const name = new TextEncoder().encode(path);
    const common = [[2, 20], [2, 0x800], [2, 0], [2, 0], [2, 0x21], [4, crc32(bytes)],
      [4, bytes.length], [4, bytes.length], [2, name.length], [2, 0]];
    parts.push(header(0x04034b50, common), name, bytes);
    const own = [[2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]];
    directory.push(header(0x02014b50, own), name);
    offset += 30 + name.length + bytes.length;
    directorySize += 46 + name.length;
  }
  const end = [[2, 0], [2, 0], [2, clips.length], [2, clips.length], [4, directorySize],
    [4, offset], [2, 0]];
  return [...parts, ...directory, header(0x06054b50, end)];
}

async function take(name, files) {
  const clips = files.filter(({ path }) => {
    const parts = path.split("/");
    return parts.length > 2 && folders.includes(parts.at(-2)) && /\.wav$/i.test(path);
  });
  const size = clips.reduce((sum, { file }) => sum + file.size, 0);
  if (!clips.length) {
    return say(`${name} holds no test clips. Choose a folder with <machine>/test/….wav in it.`);
  }
  if (clips.length > maxClips || size > maxBytes) {
    return say(`${name} holds ${clips.length} test clips of ${Math.ceil(size / 2 ** 20)} MiB, at ` +
      `most ${maxClips} of ${Math.floor(maxBytes / 2 ** 20)} MiB are taken here. Choose a folder ` +
      "with fewer machines, or use score.py.");
  }
  say(`Packing ${clips.length} clips…`);
  const zip = new File(await zipped(clips), `${name}.zip`, { type: "application/zip" });
  box().querySelector("button[aria-label=Clear]")?.click(); // what was given before
  for (let i = 0; i < 50 && !box().querySelector("input[type=file]"); i++) {
    await new Promise((done) => setTimeout(done, 50));
  }
  const given = new DataTransfer();
  given.items.add(zip);
  const input = box().querySelector("input[type=file]");
  input.files = given.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
  say(`${clips.length} test clips of ${name} are ready.`);
}

async function listed(directory, path = directory.name, found = []) {
  // A dropped folder tells its entries in portions; an empty one is the last.
  const reader = directory.createReader();
  for (;;) {
    const entries = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!entries.length || found.length > 50000) return found;
    for (const entry of entries) {
      const below = `${path}/${entry.name}`;
      if (entry.isDirectory) await listed(entry, below, found);
      else found.push({ path: below, file: await new Promise((done, fail) => entry.file(done, fail)) });
    }
  }
}

const told = (name) => (error) => say(`${name} cannot be read: ${error.message} Zip it instead.`);

element.querySelector("button").addEventListener("click", () => { chooser.value = ""; chooser.click(); });
chooser.addEventListener("change", () => {
  const files = [...chooser.files].map((file) => ({ path: file.webkitRelativePath, file }));
  if (!files.length) return;
  const name = files[0].path.split("/")[0];
  take(name, files).catch(told(name));
});
// In the capture phase, before the box sees a folder and takes it for a file.
document.addEventListener("drop", (event) => {
  if (!element.isConnected || !box()?.contains(event.target)) return;
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
  const folder = entries.find((entry) => entry?.isDirectory);
  if (!folder) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  event.target.dispatchEvent(new DragEvent("dragleave", { bubbles: true }));
  listed(folder).then((files) => take(folder.name, files)).catch(told(folder.name));
}, true);
