// The values of a chart under the pointer, read back from the curves themselves.
for (const svg of document.querySelectorAll('.chart > svg')) {
  const numbers = name => svg.dataset[name].split(' ').map(Number);
  const [left, right, top, bottom] = numbers('box');
  const [x0, x1] = numbers('x'), [y0, y1] = numbers('y');
  const readout = document.createElement('div'), cursor = svg.querySelector('.axis').cloneNode();
  readout.className = 'readout';
  cursor.setAttribute('class', 'cursor');
  const hide = () => { readout.remove(); cursor.remove(); };
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('pointermove', event => {
    const x = new DOMPoint(event.clientX, 0).matrixTransform(svg.getScreenCTM().inverse()).x;
    const step = p => Math.round(x0 + (p.x - left) / (right - left) * (x1 - x0)).toLocaleString();
    const found = new Map();  // Of every curve the point nearest to the pointer.
    for (const line of svg.querySelectorAll('polyline'))
      for (const p of line.points) {
        const best = found.get(line.dataset.label);
        if (!best || Math.abs(p.x - x) < Math.abs(best.x - x)) found.set(line.dataset.label, p);
      }
    if (!found.size) return;
    const nearest = [...found.values()].reduce((a, b) => Math.abs(b.x - x) < Math.abs(a.x - x) ? b : a);
    const near = nearest.x, lines = ['step ' + step(nearest)];
    for (const [label, p] of found) {
      const y = y0 + (bottom - p.y) / (bottom - top) * (y1 - y0);
      lines.push(label + ' ' + y.toPrecision(3) + (step(p) === step(nearest) ? '' : ' at ' + step(p)));
    }
    readout.textContent = lines.join('\n');
    cursor.setAttribute('x1', near); cursor.setAttribute('x2', near);
    cursor.setAttribute('y1', top); cursor.setAttribute('y2', bottom);
    svg.append(cursor);
    svg.parentNode.append(readout);
  });
}
