/**
 * Serves a folder of blobs as a coordinator does, in a process of its own for a network namespace of its own. Prints its port, then
 * what it has sent at every line that comes in.
 *
 * node blob-host.mjs FOLDER ADDRESS [TLS_FOLDER]     TLS_FOLDER: with key.pem, cert.pem and ca.pem; clients need a certificate of that CA
 */
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const PIECE = 16 * 1024;
const [folder, address, tlsFolder] = process.argv.slice(2);
let bytesSent = 0;
let requests = 0;

function answer(request, response) {
  requests += 1;
  const sha256 = request.url.slice('/blobs/'.length);
  let data;
  try {
    data = readFileSync(join(folder, sha256));
  } catch {
    return response.writeHead(404).end();
  }
  const match = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
  const first = Number(match?.[1] ?? 0);
  const part = data.subarray(first, Math.min(Number(match?.[2] ?? Infinity) + 1, data.length));
  response.writeHead(206, { 'content-length': part.length, 'content-range': `bytes ${first}-${first + part.length - 1}/${data.length}` });
  // Counted as the kernel takes it, so that what a cut leaves behind in this process does not count.
  let at = 0;
  const more = () => {
    if (at >= part.length) return response.end();
    const piece = part.subarray(at, at + PIECE);
    response.write(piece, (error) => {
      if (error) return;
      at += piece.length;
      bytesSent += piece.length;
      more();
    });
  };
  more();
}

const pem = (name) => readFileSync(join(tlsFolder, name));
const server = tlsFolder ? createTlsServer({ key: pem('key.pem'), cert: pem('cert.pem'), ca: pem('ca.pem'), requestCert: true, minVersion: 'TLSv1.3' }, answer) : createServer(answer);
server.listen(0, address, () => console.log(JSON.stringify({ port: server.address().port })));
createInterface({ input: process.stdin }).on('line', () => console.log(JSON.stringify({ bytesSent, requests })));
