/** The files of the folder `deploy` that are sent to devices. This file lies in services/cli/{src,dist}/deploy. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const FOLDER = join(__dirname, '..', '..', '..', '..', 'deploy');

export const deployFile = (path: string): string => readFileSync(join(FOLDER, path), 'utf8');
