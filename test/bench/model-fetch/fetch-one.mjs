/**
 * Fetches one model with the agent's own code, without an agent. Prints, a line each, what has been received, and at the end what it
 * came to; ends with code 1 and the reason where it cannot be had.
 *
 * node fetch-one.mjs FOLDER MANIFEST_SHA256 BYTES HOST:PORT
 */
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { root } from '../shared.mjs';

const require = createRequire(import.meta.url);
const models = join(root, 'edge-agent', 'dist', 'models');
const { BlobClient } = require(join(models, 'blob-client.js'));
const { CoordinatorBlobs } = require(join(models, 'coordinator-blobs.js'));
const { FetchAllowance } = require(join(models, 'fetch-allowance.js'));
const { FetchProgress } = require(join(models, 'fetch-progress.js'));
const { fetchModel } = require(join(models, 'model-fetch.js'));
const { ModelsFolder } = require(join(models, 'models-folder.js'));
const { PeerSet } = require(join(models, 'peer-set.js'));

const [folder, manifestSha256, bytes, address] = process.argv.slice(2);
const [host, port] = address.split(':');
const log = { info() {}, warn: (fields, text) => console.error(text, JSON.stringify(fields)), error: (fields, text) => console.error(text, JSON.stringify(fields)) };
const now = () => performance.now();
let received = 0;

class CountingClient extends BlobClient {
  read(range, take, signal) {
    return super.read(range, (part) => {
      received += part.length;
      console.log(JSON.stringify({ received, done: progress.bytesDone }));
      return take(part);
    }, signal);
  }
}

const client = new CountingClient({ host, port: Number(port), tls: null });
const progress = new FetchProgress(manifestSha256, Number(bytes), now);
const coordinator = new CoordinatorBlobs({ client: () => client, allowance: new FetchAllowance({ bytesPerSecond: null, quietHours: null }, now, () => new Date()), log });
fetchModel({ manifestSha256, bytes: Number(bytes) }, {
  folder: new ModelsFolder(folder), coordinator, peers: PeerSet.none(log), setUpPath: null, check: async () => {},
  onPart: (part) => console.log(JSON.stringify({ kept: part.bytesHeld })), log,
}, progress, new AbortController().signal).then(() => {
  console.log(JSON.stringify({ received, whole: true }));
  process.exit(0);
}, (error) => {
  console.error(error.message);
  process.exit(1);
});
