package main

// How a chart is drawn: on white, so that it can be read on a dark page too.

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"os"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// colours of peers: the same in every chart, and told apart by the colour-blind (Okabe and Ito's).
func colourOf(peer string) color.Color {
	switch peer {
	case ours:
		return color.RGBA{0x00, 0x72, 0xB2, 0xFF}
	case oursOff:
		return color.RGBA{0x56, 0xB4, 0xE9, 0xFF}
	case fiberPrefork:
		return color.RGBA{0xD5, 0x5E, 0x00, 0xFF}
	case controlled:
		return color.RGBA{0xE9, 0xA0, 0x70, 0xFF}
	case fiberAlone:
		return color.RGBA{0xE6, 0x9F, 0x00, 0xFF}
	case netHTTP:
		return color.RGBA{0xCC, 0x79, 0xA7, 0xFF}
	case nginx:
		return color.RGBA{0x00, 0x9E, 0x73, 0xFF}
	case fastShared, fastReuse:
		return color.RGBA{0xF0, 0xE4, 0x42, 0xFF}
	case puma:
		return color.RGBA{0x99, 0x99, 0x99, 0xFF}
	default:
		return color.RGBA{0x44, 0x44, 0x44, 0xFF}
	}
}

const (
	chartHeight = 9 * vg.Centimeter
	chartWidth  = 24 * vg.Centimeter
	groupShare  = 0.82                           // of the width of a group that its bars fill
	chartRoom   = chartWidth - 1.5*vg.Centimeter // without the axis
	legendShare = 0.2                            // of that
	tallest     = 1.6                            // times the highest bar is what whiskers may reach
)

// fonts is what the text is set in: whichever of them the reader has.
const fonts = "Liberation Sans, Arial, Helvetica, sans-serif"

// draw writes c into a file, and reports whether there was anything to draw.
func (c *bars) draw(title, path string) (bool, error) {
	if len(c.series) == 0 || len(c.groups) == 0 {
		return false, nil
	}
	sans := font.Font{Typeface: "Liberation", Variant: "Sans"}
	p := plot.New()
	p.BackgroundColor = color.White
	p.Title.Text = title
	p.Title.Padding = vg.Points(8)
	p.Title.TextStyle.Font = font.From(sans, 12)
	p.X.Tick.Label.Font, p.Y.Tick.Label.Font = font.From(sans, 9), font.From(sans, 9)
	p.Legend.TextStyle.Font = font.From(sans, 9)
	p.Legend.Top, p.Legend.Left = true, true // at the left of the room that is left for it at the right
	p.Legend.XOffs = chartRoom*(1-legendShare) + vg.Points(8)
	p.Legend.Padding = vg.Points(3)
	p.Legend.ThumbnailWidth = vg.Points(10)
	labels := make([]string, len(c.groups))
	for i, group := range c.groups {
		labels[i] = strings.Replace(group, ", ", ",\n", 1)
	}
	p.NominalX(labels...)

	top := c.line
	for _, peer := range c.series {
		for _, v := range c.values[peer] {
			top = max(top, tallest*c.height(v))
		}
	}
	most := 0.0
	count := float64(len(c.groups))
	perGroup := chartRoom * (1 - legendShare) / vg.Length(count)
	width := perGroup * groupShare / vg.Length(len(c.series))
	for i, peer := range c.series {
		offset := width * vg.Length(float64(i)-float64(len(c.series)-1)/2)
		heights := make(plotter.Values, len(c.groups))
		for g, group := range c.groups {
			if v := c.values[peer][group]; v != nil {
				heights[g] = c.height(v)
				_, high := c.ends(v)
				most = max(most, min(top, high), c.height(v))
			}
		}
		chart, err := plotter.NewBarChart(heights, width*0.92)
		if err != nil {
			return false, err
		}
		chart.Color, chart.LineStyle.Width, chart.Offset = colourOf(peer), 0, offset
		p.Add(chart, &whiskers{chart: c, peer: peer, offset: offset, top: top, font: font.From(sans, 7), digits: width >= vg.Points(12)})
		p.Legend.Add(peer, chart)
	}
	if c.line != 0 {
		line := plotter.NewFunction(func(float64) float64 { return c.line })
		line.Color, line.Dashes = color.Gray{0x66}, []vg.Length{vg.Points(4), vg.Points(3)}
		line.XMax = count - 0.5
		p.Add(line)
	}
	p.Y.Min, p.Y.Max = 0, 1.1*max(most, c.line, 1e-3)
	p.X.Min, p.X.Max = -0.5, -0.5+count/(1-legendShare)
	return true, save(p, path)
}

// save writes p with fonts that a reader has.
func save(p *plot.Plot, path string) error {
	writer, err := p.WriterTo(chartWidth, chartHeight, "svg")
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if _, err := writer.WriteTo(&text); err != nil {
		return err
	}
	return os.WriteFile(path, bytes.ReplaceAll(text.Bytes(), []byte("font-family:Liberation Sans"), []byte("font-family:"+fonts)), 0o644)
}

// whiskers are the lines from the least to the most over the bars of a peer,
// with the height of the bar in digits if they fit.
type whiskers struct {
	chart  *bars
	peer   string
	offset vg.Length
	top    float64
	font   font.Font
	digits bool // there is room for them
}

// Plot implements plot.Plotter.
func (w *whiskers) Plot(canvas draw.Canvas, p *plot.Plot) {
	toX, toY := p.Transforms(&canvas)
	style := draw.LineStyle{Color: color.Gray{0x22}, Width: vg.Points(0.7)}
	label := p.X.Tick.Label
	label.Font = w.font
	label.Rotation = 0
	label.XAlign, label.YAlign = draw.XCenter, draw.YBottom
	for g, group := range w.chart.groups {
		v := w.chart.values[w.peer][group]
		if v == nil {
			continue
		}
		x := toX(float64(g)) + w.offset
		low, high := w.chart.ends(v)
		high = min(w.top, high)
		canvas.StrokeLine2(style, x, toY(min(w.top, low)), x, toY(high))
		if !w.digits {
			continue
		}
		canvas.FillText(label, vg.Point{X: x, Y: toY(max(high, w.chart.height(v))) + vg.Points(2)}, digits(w.chart.height(v)))
	}
}

func digits(v float64) string {
	switch {
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.0f", v)
	case v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 1.95:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
